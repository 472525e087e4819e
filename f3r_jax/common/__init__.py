"""What any command needs: errors, the command line, progress, files, versions, the compilation cache."""
