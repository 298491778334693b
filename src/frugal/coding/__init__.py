"""The file as small as theory allows: weights as whole numbers, and the coders that write them."""
