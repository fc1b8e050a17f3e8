// Hello Grid with amqp091-go: go run ./hello091 [URL [QUEUE [CMD [ARGUMENTS]]]]
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

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	log.SetFlags(0)
	url := cmp.Or(os.Getenv("CAROD_BROKER"), "amqp://guest:guest@localhost:5672")
	args := append(os.Args[1:], []string{url, "grid", "/bin/echo", "Hello Grid"}[min(len(os.Args)-1, 4):]...)
	job := amqp.Table{"Cmd": args[2], "Arguments": args[3]}
	if err := run(context.Background(), args[0], args[1], job); err != nil {
		log.Fatal(err)
	}
}

// run submits a job and shows what is said about it, up to its output.
func run(ctx context.Context, url, grid string, job amqp.Table) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return fmt.Errorf("no broker: %w", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	// Exclusive: it goes when we go. The broker names it.
	queue, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return err
	}
	replies, err := ch.ConsumeWithContext(ctx, queue.Name, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	returned := ch.NotifyReturn(make(chan amqp.Return, 1)) // what no queue takes comes back: mandatory
	lost := conn.NotifyClose(make(chan *amqp.Error, 1))
	err = ch.PublishWithContext(ctx, "", grid, true, false, amqp.Publishing{
		MessageId: rand.Text(),
		ReplyTo:   queue.Name,
		Headers:   job,
	})
	if err != nil {
		return err
	}
	for {
		select {
		case <-returned:
			return fmt.Errorf("no queue %q on the broker: is a node running?", grid)
		case err := <-lost:
			return fmt.Errorf("connection lost: %w", err)
		case reply, ok := <-replies:
			if !ok { // the reason comes on lost
				replies = nil
			} else if last, err := show(reply.Headers, reply.Body); last || err != nil {
				return err
			}
		}
	}
}

// show prints what a reply says, and the job's output if it is the last one. A job that failed is an error.
func show(ad amqp.Table, body []byte) (last bool, err error) {
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
