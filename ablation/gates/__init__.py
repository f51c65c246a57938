"""What attention gates look at: views of networks along training, their figures, the explorer."""
