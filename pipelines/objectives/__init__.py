"""The mathematics: token weights and losses as pure functions of tensors."""
