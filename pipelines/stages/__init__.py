"""The stages of the loop: each module has a function `run(job) -> result`."""
