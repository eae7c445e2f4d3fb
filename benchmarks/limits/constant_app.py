"""What uvicorn itself costs: an application that reads each body and answers with the same bytes."""

ANSWER = b'{"predictions":[]}'


async def app(_scope, receive, send):
    """One answer for every path."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})
