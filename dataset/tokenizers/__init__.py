"""Ways of turning a cell into tokens, one a file."""
