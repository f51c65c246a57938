"""Views of attention: the gates of networks for an image, Grad-CAM, and the networks and images of runs."""
