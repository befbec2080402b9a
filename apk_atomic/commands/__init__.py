"""One module for each verb of apk-atomic; each turns parsed arguments into an exit status."""
