"""Token weights and mid-training losses, as pure functions of tensors."""
