"""The command line of remit: parse, call, render. It does not import torch."""
