"""From the rows of a data set to batches of images: order, random numbers, decoding, caching."""
