"""What a person sees of a run: terminal, pictures, explanations, Weights & Biases."""
