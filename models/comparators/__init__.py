"""Published methods, each fitted by its own package, as its users would do it.

Seurat, CHETAH and others that exist only in R are absent: they cannot be run from Python.
"""
