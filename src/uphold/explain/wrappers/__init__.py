"""What fine-tuning did to a skill: behaviour, revival, probes, relearning and scaling; the method is `wrapper`."""
