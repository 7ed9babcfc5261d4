"""Training scripts of the demo checkpoint: a small Stable Diffusion 1.5, trained from scratch on drawn shapes.

`python -m deploy.standalone.training --help` lists the steps. Nothing in the farm imports this package.
"""
