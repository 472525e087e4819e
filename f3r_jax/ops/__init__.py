"""Pure array functions: convolution, warp, fields, MIND."""
