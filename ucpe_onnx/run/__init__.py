"""One run of the line: what its stages share, the candidates that it tries, and their trials."""
