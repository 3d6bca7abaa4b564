"""Programs that attack normtrain: runs killed at random, and thousands of bad inputs."""
