"""The stages of the ReMiT flywheel and what drives them. `remit_cli` is the face."""

__version__ = "0.2.0"
