"""DMD2 step distillation: the objective, its networks, its losses and the watch over it."""
