"""What a test-time method is: it sees the views and text logits of the stream, image after image, and may keep state."""

from torch import nn

from multicrop.aggregators import Logits, Views


class Method(nn.Module):
    """Buffers hold the state, so that `state_dict` saves a stream in the middle and `load_state_dict` resumes it."""

    def reset(self) -> None:
        """Forget the stream."""
        raise NotImplementedError

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Adapted logits of the next images of the stream, in order; the result does not depend on how the stream is batched."""
        raise NotImplementedError
