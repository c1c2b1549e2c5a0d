"""The files we write: CSR arrays, atomic folders, checksums, and the encoded folder's reader."""
