"""Bodies that came compressed: decoding them, and bounds on what they become."""
