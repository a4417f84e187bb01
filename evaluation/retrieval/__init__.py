"""Does a rule retrieve the right frames? Retrieval rules judged on finished clips of latents."""
