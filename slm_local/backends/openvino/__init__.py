"""OpenVINO GenAI behind the backend protocol: `backend` is the way in, and plans need no more than `support`."""
