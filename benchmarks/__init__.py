"""Speed and memory, each part beside a peer and a limit measured in the same run."""
