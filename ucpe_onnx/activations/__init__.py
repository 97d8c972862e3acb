"""What flows through a network on the user's samples: layers as linear maps, and statistics of what they read."""
