"""What shows before training that a distillation would go wrong."""
