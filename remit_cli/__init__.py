"""The command line of remit: parse, call, render. Imports no torch."""
