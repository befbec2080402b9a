"""Bad input and bad luck: each case really done, on a real volume."""
