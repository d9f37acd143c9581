"""The configuration of an nginx that does nothing but pass chat requests on, unbuffered."""

from pathlib import Path

_CONF = """
daemon off;
# One process, whose CPU time is all there is.
master_process off;
worker_processes 1;
pid {home}/pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_body_buffer_size 64k;
    keepalive_requests 1000000;
    tcp_nodelay on;
    upstream vllm {{
        server 127.0.0.1:{upstream_port};
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://vllm;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 120s;
        }}
    }}
}}
"""


def write_conf(home: Path, port: int, upstream_port: int) -> Path:
    """Writes the configuration into `home`, where everything that this nginx writes goes, too."""
    conf = home / "nginx.conf"
    conf.write_text(_CONF.format(home=home, port=port, upstream_port=upstream_port), encoding="utf-8")
    return conf
