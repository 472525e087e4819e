"""F3RNet in JAX: learned multimodal deformable registration of CT and MR volumes."""

__version__ = "0.1.0"
