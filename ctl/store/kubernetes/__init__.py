"""The lease store in the Kubernetes API, as flannel has it: a Node is a lease."""
