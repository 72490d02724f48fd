"""What a run would cost on TPUs that are not there: the real compiler, and a model of the hardware."""
