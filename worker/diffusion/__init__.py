"""The maths of Stable Diffusion 1.5, most of it diffusers'. Knows no job, queue or database."""
