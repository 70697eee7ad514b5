"""What each rank of a training job holds: weights, gradients, states and their buffers."""
