// Registers a CSI driver with the kubelet of its node. The driver itself can't: the kubelet names its socket's path as
// the authority of its calls, and Rust's HTTP library takes no path for an authority.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	driver, socket string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.driver,
		Endpoint:          r.socket,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.PluginRegistered {
		// Started again, it is asked again.
		log.Fatalf("the kubelet refused %s: %s", r.driver, s.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	var r registrar
	flag.StringVar(&r.driver, "driver", "", "the driver's name")
	flag.StringVar(&r.socket, "socket", "", "the driver's socket")
	folder := flag.String("folder", "/var/lib/kubelet/plugins_registry", "where the kubelet looks for sockets")
	flag.Parse()
	path := filepath.Join(*folder, r.driver+"-reg.sock")
	if err := os.MkdirAll(*folder, 0o750); err != nil {
		log.Fatal(err)
	}
	// One that was killed left its socket.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &r)
	log.Fatal(server.Serve(listener))
}
