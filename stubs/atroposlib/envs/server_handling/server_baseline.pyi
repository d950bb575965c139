from pydantic import BaseModel

class APIServerConfig(BaseModel):
    model_name: str
    base_url: str | None
    api_key: str | None

class ServerBaseline(BaseModel):
    model_name: str
