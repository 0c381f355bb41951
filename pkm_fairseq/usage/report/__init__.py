"""One page that shows how checkpoints use their memories."""
