// Hello Grid over AMQP 1.0, with go-amqp: go run ./hello10 [URL [QUEUE [CMD [ARGUMENTS]]]]
//
// On brokers that do not make up reply queues (RabbitMQ), REPLY_QUEUE in the environment names one.
package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"

	"github.com/Azure/go-amqp"
)

func main() {
	log.SetFlags(0)
	url := cmp.Or(os.Getenv("CAROD_BROKER"), "amqp://localhost:5672")
	args := append(os.Args[1:], []string{url, "grid", "/bin/echo", "Hello Grid"}[min(len(os.Args)-1, 4):]...)
	job := map[string]any{"Cmd": args[2], "Arguments": args[3]}
	if err := run(context.Background(), args[0], args[1], job); err != nil {
		log.Fatal(err)
	}
}

// run submits a job and shows what is said about it, up to its output.
func run(ctx context.Context, url, grid string, job map[string]any) error {
	conn, err := amqp.Dial(ctx, url, nil)
	if err != nil {
		return fmt.Errorf("no broker: %w", err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return err
	}
	named := os.Getenv("REPLY_QUEUE")
	replies, err := session.NewReceiver(ctx, named, &amqp.ReceiverOptions{DynamicAddress: named == ""})
	if err != nil {
		return fmt.Errorf("no reply queue: %w", err)
	}
	sender, err := session.NewSender(ctx, grid, nil)
	if err != nil {
		return fmt.Errorf("no queue %q on the broker: is a node running? %w", grid, err)
	}
	replyTo := replies.Address()
	message := amqp.NewMessage(nil)
	message.Properties = &amqp.MessageProperties{MessageID: rand.Text(), ReplyTo: &replyTo}
	message.ApplicationProperties = job
	if err := sender.Send(ctx, message, nil); err != nil {
		return fmt.Errorf("queue %q did not take the job: is a node running? %w", grid, err)
	}
	for {
		reply, err := replies.Receive(ctx, nil)
		if err != nil {
			return fmt.Errorf("connection lost: %w", err)
		}
		if err := replies.AcceptMessage(ctx, reply); err != nil {
			return err
		}
		if last, err := show(reply.ApplicationProperties, reply.GetData()); last || err != nil {
			return err
		}
	}
}

// show prints what a reply says, and the job's output if it is the last one. A job that failed is an error.
func show(ad map[string]any, body []byte) (last bool, err error) {
	var said []string
	for _, name := range []string{"JobStatus", "JobState", "ExitCode"} {
		if value, ok := ad[name]; ok {
			said = append(said, fmt.Sprintf("%s=%v", name, value))
		}
	}
	fmt.Println(strings.Join(said, " "))
	if bytes.HasPrefix(body, []byte("ERROR:")) {
		return true, errors.New(string(body))
	}
	switch fmt.Sprint(ad["JobStatus"]) {
	case "3": // removed
		return true, fmt.Errorf("the job was removed: %v", ad["RemoveReason"])
	case "5": // held
		return true, fmt.Errorf("the job is held: %v", ad["HoldReason"])
	case "4": // completed
		results, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
		if err != nil {
			return true, err
		}
		stdout, err := fs.ReadFile(results, "_condor_stdout")
		fmt.Print(string(stdout))
		if fmt.Sprint(ad["ExitCode"]) != "0" { // there is none if a signal ended it
			stderr, _ := fs.ReadFile(results, "_condor_stderr")
			return true, fmt.Errorf("%sExitReason=%v", stderr, ad["ExitReason"])
		}
		return true, err
	}
	return false, nil
}
