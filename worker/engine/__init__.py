"""Who is in the next UNet call, and the call itself. Knows no job, queue or database."""
