"""From any .h5ad or .zarr, near or far, to checked counts: a library one need not read."""
