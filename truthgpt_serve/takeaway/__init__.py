"""What a training run has made, taken elsewhere: merged, exported, served.

Finds and describes results; `text` and `images` hold the conversions, with the libraries that make
them.
"""
