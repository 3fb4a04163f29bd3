"""Code shared by chats and completions: prompts, choices and streams."""
