"""Views of attention: the gates of networks, Grad-CAM, parts of their figures, and the explorer."""
