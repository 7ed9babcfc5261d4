"""How the demo checkpoint was made: a Stable Diffusion 1.5 in small, trained from nothing on drawn shapes.

`python -m deploy.standalone.training --help` lists the steps. Nothing in the farm imports this package.
"""
