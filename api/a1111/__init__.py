"""The dialect of AUTOMATIC1111's web API, `/sdapi/v1`, in front of the farm. None of its names leaves this folder."""
