"""Weights of fewer bits. What is here needs no kernels: values are those of the file, computed with in fp32."""
