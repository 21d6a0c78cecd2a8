"""Datasets in the layouts that other tools read: nnU-Net, BIDS, Croissant; each with a datasheet."""
