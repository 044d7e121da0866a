#!/bin/sh
# A gRPC client in Go that is given the path of a socket as its target, with a dialer of its own, names that path as the authority of
# its calls. HTTP/2 servers in Rust refuse the call: no handler sees it, and the client is told of a protocol error.
#
# grpc-go 1.84.0 escapes the target ("/run/x.sock" becomes "%2Frun%2Fx.sock") and sends it as `:authority`. The h2 crate 0.4.20, below
# hyper and tonic, takes no "%" there and resets the stream with PROTOCOL_ERROR. The kubelet of Kubernetes 1.37 calls plugins in this
# way, so a CSI driver in Rust can't answer its registration; with the target "unix:" + path the authority is "localhost", and all is
# well. Needs Go and Rust.
set -eu

GRPC=v1.84.0
H2=0.4.20
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
echo "grpc-go $GRPC, h2 $H2"

mkdir -p "$work/server/src" "$work/client"
cat > "$work/server/Cargo.toml" <<TOML
[package]
name = "server"
version = "0.0.0"
edition = "2024"
[dependencies]
h2 = "=$H2"
http = "1"
tokio = { version = "1", features = ["net", "rt", "macros"] }
[workspace]
TOML
cat > "$work/server/src/main.rs" <<'RUST'
/// Answers each call with the gRPC status 12 (unimplemented), and prints its authority.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = tokio::net::UnixListener::bind(std::env::args().nth(1).unwrap()).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            println!("a call for {}", request.uri().authority().unwrap());
            let head = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
    }
}
RUST
(cd "$work/server" && cargo build --quiet)

cat > "$work/client/main.go" <<'GO'
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

func call(path, target string) error {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	connection, err := grpc.NewClient(target, grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return connection.Invoke(ctx, "/a.Service/Call", &emptypb.Empty{}, &emptypb.Empty{})
}

func main() {
	path := os.Args[1]
	fmt.Println("the path:      ", call(path, "passthrough:///"+path))
	fmt.Println("unix: and path:", call(path, "unix:"+path))
}
GO
(cd "$work/client" && go mod init client > /dev/null 2>&1 && go get "google.golang.org/grpc@$GRPC" > /dev/null 2>&1 && go mod tidy > /dev/null 2>&1 && go build -o client .)

"$work/server/target/debug/server" "$work/plugin.sock" > "$work/calls" &
server=$!
while [ ! -S "$work/plugin.sock" ]; do sleep 0.1; done
"$work/client/client" "$work/plugin.sock" > "$work/said"
sed "s|$work|/tmp|g" "$work/said" "$work/calls"
grep -q "^the path: .*PROTOCOL_ERROR" "$work/said"
grep -q "^unix: and path: .*Unimplemented" "$work/said"
[ "$(cat "$work/calls")" = "a call for localhost" ]
echo "as found: the call whose authority is a path is refused below the handler"
