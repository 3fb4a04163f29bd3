"""Weights in fewer bits: one file for each method, named as users ask for it.

A quantized matrix is a pytree that stands where the array would; `layers.linear.einsum` and
`layers.embed.embed` are the only ones to ask what a weight is made of.
"""
