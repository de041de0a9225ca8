"""The stages of the loop: in each module a function `run(job) -> result`."""
