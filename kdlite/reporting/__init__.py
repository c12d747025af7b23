"""What a distillation gave: measured, tested, drawn, and told on one page."""
